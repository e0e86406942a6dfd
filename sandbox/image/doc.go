// Package image keeps container images on disk.
//
// An image is a config (what to run, see Config) and an ordered list of layers
// (what the file system looks like). Its id is the digest of the config's
// bytes; a layer is named by its diff id, the digest of its uncompressed tar.
// A name ("web:12", "docker.io/library/debian:12") points to an image id.
//
// The life of one pull: Pull asks the registry (package registry: mirrors,
// credentials, retries) for the manifest and the config, and checks their
// digests. Every layer that is not here yet is streamed: downloaded to
// partial/, hashed, decompressed, hashed again, unpacked by the package layer
// into a private directory below tmp/; several layers at once, since no layer
// needs another one to unpack. A download that is cut goes on where it was, in
// the same stream; one whose process died goes on in the next pull. A layer whose two digests are
// right is renamed into layers/. When all are there the file system is synced,
// and only then the image's record and its name are written. Lower then names
// the directories that overlayfs stacks.
//
// On disk, below the root given to Open:
//
//	lock              flock: exclusive for a change of what follows, shared for a use of a layer
//	blobs/sha256/H    configs, manifests, and layers as they came, by digest
//	layers/H/fs       one unpacked layer in overlay form, by diff id
//	layers/H/layer.json, layers/H/unsynced
//	images/H.json     one image, by id
//	names.json        name → image id
//	digests.json      name@digest of a registry → image id
//	partial/H         a layer as far as it came, by blob digest; flocked by who fetches it
//	leases/*          one flocked file for each process that uses layers no image names yet
//	tmp/*             one flocked directory for each operation that is under way
//	empty             the lower directory of an image without layers
//
// Everything appears by one rename, after what it refers to. So a process may
// be killed at any line: what it left is either complete, or below tmp/ where
// Sweep removes it because nobody holds its lock any more, or something no
// image refers to, which Prune removes. Several processes may work on one
// root at once.
//
// The package does not know about containers: whether an image is in use is
// for the caller to say (Prune's keep, Remove).
package image
