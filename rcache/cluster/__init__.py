"""Pure decisions about the cluster: states, views, placement. One node needs only the first of them."""
