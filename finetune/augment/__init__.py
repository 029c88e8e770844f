"""What happens to training images beyond crop and flip: RandAugment, erasing, mixing."""
