"""Images that lie in no tar yet, packed into tars in hashed order."""
