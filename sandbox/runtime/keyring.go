package runtime

import (
	"golang.org/x/sys/unix"

	"naru/sandbox/runtime/launch/step"
)

// keyringOf names the session keyring of a container. Who can guess the name of one that
// is not there yet can make it (keyrings of containers that share a user namespace have
// one list of names), so the id must be random, or something random behind it.
func keyringOf(id string) string { return "_ses." + id }

// A keyring that all processes of the container find by its name: whoever has it can do
// anything, and its owner see, read, link and search (keyctl_setperm(3)).
const keyringRights = 0x3f000000 | 0x010000 | 0x020000 | 0x080000 | 0x100000

// keyring leaves the session keyring of whoever starts the container, in which he may
// have secrets (keyrings(7)): keys in it are open to all who inherit it, whoever
// they are. The container has one of its own, made by its first process; a kernel without
// keyrings has none to leave. In a new user namespace this comes before the process takes the
// ids of it: the keyring is then on the quota of the machine's root. Others have 200 keys,
// which containers with the same ids would share.
func (p *program) keyring(name string) {
	if name == "" {
		return
	}
	p.add(step.Call("join session keyring", unix.SYS_KEYCTL, step.I(unix.KEYCTL_JOIN_SESSION_KEYRING), step.S(name)).Into(regKeyring).On(-int(unix.ENOSYS), 1),
		step.Call("open session keyring to the container", unix.SYS_KEYCTL, step.I(unix.KEYCTL_SETPERM), step.R(regKeyring), step.I(keyringRights)))
}

// newKeyring is for a process that has nothing to share.
func (p *program) newKeyring() {
	p.add(step.Call("join session keyring", unix.SYS_KEYCTL, step.I(unix.KEYCTL_JOIN_SESSION_KEYRING), step.I(0)).On(-int(unix.ENOSYS), 0))
}
