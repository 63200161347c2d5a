"""Models: loading and saving base models, experts and tokenizers safely, and the embedded tiny family."""
