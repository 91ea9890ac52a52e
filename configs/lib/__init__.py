"""What configs share: variants after the colon, the paper's ablations, ranges of numbers."""
