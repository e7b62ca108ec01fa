"""Starting programs here and on other hosts, and clearing what they leave."""
