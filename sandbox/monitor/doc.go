// Package monitor is the process beside each container that outlives the agent,
// and the helper that puts one more process into a container. Both are the tiny
// program naru-init; this package is linked into it and imports syscall only.
//
// The life of a monitor: it is started in a session and cgroup of its own with a
// socket to its creator on descriptor 3. It makes the user namespace that the
// creator needs for id-mapped mounts (OpUserNS), receives the launch record with
// all descriptors (OpLaunch), clones the container's init, writes its id maps
// and lets it run its list of steps up to the gate (ReplyReady). After OpCommit, which follows the creator's state.json, the container belongs
// to the monitor: it copies output to the log, answers on monitor.sock, opens the
// gate (OpStart), reaps the init, writes exit.json and ends. When it is killed, its
// keeper goes on in its place (keeper.go, resume.go).
//
// It never allocates in its loop, so it runs without garbage collector.
package monitor
