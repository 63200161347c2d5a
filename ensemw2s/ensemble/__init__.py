"""The token-level ensemble: combination rules, a Hugging Face causal LM made of experts, decoding, and its artifact."""
