"""The edge process: drafts, routes, asks the cloud, and decodes the picture."""
