"""Will a training step fit into the card's memory?"""
