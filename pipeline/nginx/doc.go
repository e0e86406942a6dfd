// Package nginx routes traffic with nginx: it implements pipeline.Router by
// writing configuration files, testing them, reloading nginx, and proving that
// the reload took effect. Nothing of it is in the data path: agent dead, nginx
// serves on.
//
// Words. The main file holds what all apps share; an app's file holds its
// upstream and its server. A generation is the set of worker processes that one
// reload made; an old generation lingers ("is shutting down") as long as it has
// clients. The gen of a file is the hash of its text; nginx answers it on a unix
// socket, so that the agent can ask what is really loaded. A file is proven when
// its gen was answered and every worker of older generations had stopped to
// accept.
//
// # The life of one Route
//
//	Announce   a flag file per worker pid; a worker that sees its flag ends each
//	           connection with its next answer ("Connection: close"). Usually
//	           called while the new replicas are still being probed.
//	validate   names and addresses; nothing that is not a host name, a label or an
//	           address is ever written into a file
//	render     the app's file; equal to the proven one: done
//	queue      one batch at a time; what arrives during a batch is the next batch
//	quiet      wait until no connection that was open at the announcement is left,
//	           at most nginx's own keepalive_timeout
//	test       nginx -t of the whole configuration with the new files in it, in a
//	           staging copy; a file that fails is refused alone, its batch goes on
//	remember   the files' former text into prev/, fsynced
//	install    temp file, fsync, rename, fsync of the directory
//	reload     SIGHUP through a pidfd to a master that was verified to be ours
//	prove      the gens answer, all workers from before are gone or shutting down
//	settle     state.json, then prev/ is emptied
//
// When reload or prove fails the former files come back and are proven again. An
// agent killed between any two lines finds prev/ at its next Start and puts the
// former files back: a Route that did not return has not happened.
//
// # Why announce
//
// A reload makes old workers close idle connections at once, also those on which
// a request is already under way: measured on nginx 1.22.1, about five lost
// requests for each reload. nginx 1.27.4 has keepalive_min_timeout against it;
// before that the only way not to break nginx's promise is not to make it. The
// flag is tested by each request (one stat(2)), named by the worker's own pid
// ($pid), so that new workers are never affected, and old ones stay announced
// until they are gone: a client that connected early and sends its first request
// to a lingering worker is told to close too.
//
// # Retire
//
// After a proven Route, only lingering workers can know a removed address. Retire
// waits for them; since other apps' websockets may hold them for long, it also
// ends when the time in which a silent client may still begin (client_header_timeout)
// has passed and the sockets of those workers show that every client is already
// bound to another address. It looks at processes and sockets only, never at
// memory, and so is right after a restart of the agent too.
//
// # Modes
//
// Managed: an nginx of our own (own prefix, pid file, sockets, logs), which
// outlives the agent and is restarted by Run when its master dies. If the master
// alone dies, its workers serve on; a new master is then given their listening
// sockets (pidfd_getfd(2) and nginx's NGINX variable), so that no connection is
// refused. System: an include file in the machine's nginx, which belongs to
// systemd; we only ever send it SIGHUP.
//
// What it does not do: TLS, HTTP/2 and HTTP/3, weights, and host names as
// upstream servers.
package nginx
