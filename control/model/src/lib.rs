//! The nouns of Culvert, their validation, and the gRPC API.
