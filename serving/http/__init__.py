"""HTTP for people, curl and V2's REST clients; in front of the same models as gRPC."""
