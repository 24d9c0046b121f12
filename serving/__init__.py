"""The inference service: V2 over gRPC, dynamic batching, ONNX Runtime, Prometheus metrics."""
