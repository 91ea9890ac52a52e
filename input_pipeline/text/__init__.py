"""Text of the training samples and of the questions: box codec, prompts, questions, referrals, captions, tokenizer."""
