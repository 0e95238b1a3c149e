"""Features, plans and heads enter; rows of scores leave: one head, a comparison of heads, or a grid of them."""
