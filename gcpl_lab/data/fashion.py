"""The classes of Fashion-MNIST, from which the bundled sets are cut, and which of them look alike.

Source: Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747 (MIT licence)
"""

FASHION_CLASSES = "t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"
"""Fine class names in the order of the published label ids 0 to 9."""

FASHION_FAMILIES = {
    "tops": ("t-shirt", "pullover", "dress", "coat", "shirt"),
    "footwear": ("sandal", "sneaker", "ankle boot"),
    "trousers": ("trousers",),
    "bags": ("bag",),
}
"""Families of look-alikes; a family of one class has no look-alike in the set."""
