// Package runtime runs one container from an OCI spec.
//
// The life of a container: Create checks the spec, makes the cgroups with their
// limits and starts the monitor (package naru/sandbox/monitor) in a cgroup of its own.
// While that starts, Create builds what must not be found through the image: the overlay, /dev,
// volumes, all as detached mounts, and the seccomp program. It writes
// the start down as a list of system calls (package launch/step) and sends it with all descriptors. The
// monitor clones the init into its namespaces; the init runs the list up to its
// gate, and Create returns. A network can be plugged in now. Start opens the gate: the
// init drops its privileges and becomes the image's program. Wait, Signal, Exec
// and Kill work from every process that calls Open, as long as the container is
// there; Destroy removes what it leaves.
//
// What is promised, in which order things happen and what a crash leaves is in
// ../DESIGN.md.
package runtime
