"""Does pre-training pay on one's own images? Many `beit` runs from several starts, and one table over them."""
