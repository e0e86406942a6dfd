// Package attacks holds no code, only a table of attacks on containers and the
// tests that run it.
//
// Each attack is run against a real container, up to three times:
//
//   - default: the hardened default with a user namespace. The attack must fail.
//   - holds: without the other mitigations that would stop it as well (often the
//     user namespace: container ids are host ids). It must still fail.
//   - works without …: as before, and the one mitigation of the row is off. It
//     must succeed; otherwise the two tests before would prove nothing.
//
// Most mitigations are a part of the OCI spec, so they are off where a row changes
// the spec (a capability more, a mask less). Those that are steps of the start are
// taken out of the list of steps (package naru/sandbox/internal/loosen). For layer
// archives, which a careful unpacker makes harmless, the attack that works is the
// same archive given to a careless one.
//
// The life of one run: the test makes a canary (a file, a process, a segment of
// shared memory, a loop device over a file, …) and a hostile image; the attack is
// a function of this test's own binary, which the image contains as /attack and
// the container runs; success is a change of the canary, or its content in the
// output, or, where the kernel's answer is all there is to have, exit code 42.
//
// Nothing real is attacked: the tests re-execute themselves in fresh network (no
// route), mount, process, IPC and host name namespaces, which play the host. What
// is not namespaced (core_pattern, interrupts, sysfs) is opened for writing, never
// written; kernel calls that would change the machine get arguments that can only fail
// behind the permission check. Bombs are bounded by the attacker itself.
package attacks
