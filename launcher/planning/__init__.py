"""Plans what a launch will do, as values. Making a plan changes nothing."""
