"""Which sample comes when: a pure function of the seed and the clock."""
