"""Where the view is agreed: the registers beyond this node's own file, and what brings a node's wishes to one."""
