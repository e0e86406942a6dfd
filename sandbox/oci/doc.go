// Package oci keeps containers of OCI bundles: what a runtime of the runtime-spec
// does, without images, networks or logs of its own. Engines such as containerd,
// Docker and Podman drive it through `naru oci`.
//
// The life of a container: Create locks and makes its directory below Root, checks
// the bundle, has package runtime make namespaces, cgroups and mounts, runs the
// hooks of that time, writes state.json, and lets go of the init, which waits at a
// fifo there and belongs to the caller's subreaper from then on. Start opens the
// fifo. Its status is never written down: State asks the kernel, and a process is the
// recorded one only if boot id, start time and pidfd inode agree. Delete ends what is
// left in the cgroup, removes that and the directory, and runs the last hooks.
//
// No process of this package stays while a container runs.
package oci
