"""The control plane: this node as a member of its cluster, from one view to the next."""
