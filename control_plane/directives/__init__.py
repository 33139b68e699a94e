"""What is seen of the nodes, and what the director decided: the data that replicas share."""
