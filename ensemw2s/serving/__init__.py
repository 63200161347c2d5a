"""An endpoint that hosts ensembles, students and experts: the OpenAI API, a page that shows the votes, metrics."""
