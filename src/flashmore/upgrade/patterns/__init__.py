"""What attention is made of, one family a file: products, scores, scales, masks, weights."""
