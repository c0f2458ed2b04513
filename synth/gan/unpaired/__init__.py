"""A start without any label: images and masks that do not belong together teach each other (Wang et al. 2020)."""
