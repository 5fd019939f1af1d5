"""Images: sources, preprocessing, augmentation, and the one grain pipeline that joins them."""
