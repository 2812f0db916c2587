"""Means and standard deviations (red, green, blue) that weights share, for images in [0, 1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ONE_HALF = (0.5, 0.5, 0.5)  # as mean and std, maps [0, 1] to [-1, 1]
