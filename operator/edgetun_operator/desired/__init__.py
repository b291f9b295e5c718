"""What should be there for a resource: pure builders of Kubernetes objects. The same input gives the same objects."""
