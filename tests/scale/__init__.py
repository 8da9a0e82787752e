"""Real size: several processes, nodes and replicas give what one gives."""
