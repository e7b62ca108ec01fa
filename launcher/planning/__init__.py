"""What a launch is to do, as values: nothing is touched while a plan is made."""
