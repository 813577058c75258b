"""Files in and out: photographs, their headers, videos, folders of them, and results."""
