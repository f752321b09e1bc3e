"""Zip archives, as torch.save writes them, whose entries must not need more memory than the file's size."""

from zipfile import ZIP_STORED, ZipFile


def inflated(archive: ZipFile, num_bytes: int) -> str | None:
    """Return why reading an archive may need more memory than its size, as the end of "<file> has ..."; None if not.

    Args:
        archive: the archive; only its index is read.
        num_bytes: size of the file.
    """
    entries = archive.infolist()
    if any(entry.compress_type != ZIP_STORED for entry in entries):
        return "has compressed entries, which torch.save never writes"
    if sum(entry.file_size for entry in entries) > num_bytes:
        return "declares more bytes than it has"
    return None
