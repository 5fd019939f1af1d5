"""What divides the inputs of a product and multiplies the rows of its kernel. One method a file."""
