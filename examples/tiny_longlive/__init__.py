"""tiny-longlive: a small trained video model in LongLive-2.0's architecture and format."""
