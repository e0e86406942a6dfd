// Package layer turns layer tars into directories that overlayfs can stack,
// and such directories into tars.
//
// Unpack reads a layer tar (image-spec, layer.md) that may come from anyone.
// For every entry it opens the parent directory with openat2(RESOLVE_IN_ROOT)
// below the descriptor of the layer's root, so that the kernel itself keeps
// each symbolic link, absolute or not, inside; then it acts on the last name
// without following it, and creates files with O_EXCL. A whiteout becomes a
// character device 0/0, an opaque marker the extended attribute
// trusted.overlay.opaque=y (kernel, Documentation/filesystems/overlayfs.rst);
// nothing outside the directory is read, changed or removed. Entries, bytes,
// depth and the ratio to the compressed size are limited.
//
// Pack walks such a directory and writes the one tar that belongs to it: the
// same tree gives the same bytes, which is why a built layer can be stored as
// a directory only and still has a digest.
//
// The package does not know digests, compression or the store.
package layer
