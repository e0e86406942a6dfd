// Package build makes an image from a Dockerfile. Syntax is read by BuildKit's
// own parser; what the instructions mean is written here, after BuildKit's
// dockerfile2llb, and where we differ the code says so. Whatever an instruction
// can say is either done or refused with file and line, never ignored.
//
// Words: a stage is a FROM and what follows it. A step is an instruction that
// makes a layer (RUN, COPY, ADD, WORKDIR); the others only change the config. A
// source is a tree that files are copied from: the build context, or what an
// image or an earlier stage has made. A key is the digest of everything that a
// step's layer depends on.
//
// One build: the Dockerfile is read, or written for a context that has none
// (detected.go, room detect), and parsed (dockerfile.go). Its stages become
// a plan (plan.go): names are resolved, also to what the caller wants them to mean
// (contexts.go), the base images are looked up (bases.go) and their triggers put
// in (onbuild.go), and what the target needs is kept, if it holds nothing we do
// not do (refuse.go). What is legal in it and probably not meant is a warning
// (check.go, room lint). The stages run as a graph (graph.go); in each, an instruction
// changes the stage's state (config.go) or is a step (layer.go): its key is looked
// up in the cache (cache.go) and a hit, whose layer looks as it did (shape.go), adds
// the layer that is there already. On a miss room is made (room.go) and the store
// gives a new layer; RUN hands it to the Executor (run.go); COPY, ADD and WORKDIR
// look for where things go through an overlay of the layers below that is mounted
// nowhere (view.go), so that links of the image are followed inside the image and
// nothing is left behind by a crash (copy.go, write.go, untar.go), and write files
// side by side (put.go); what ADD names by URL is fetched first (remote.go, room
// fetch). The layer is committed to the store, then remembered under its key: a build that is killed leaves nothing but
// good layers and a directory that the store sweeps. When all platforms are built,
// the image goes to its places (output.go), with statements about it (attest.go).
//
// Every path of a context or an image is resolved by the kernel below its root
// (root.go). The cache knows files by content; the content of a context's file is
// remembered by inode, ctime, mtime and size (sums.go), so that a second build of
// an unchanged context reads no file.
//
// What happens is told as events (report.go), which the room progress shows. An
// error that belongs to lines of the Dockerfile carries them, with what is wrong
// underlined (excerpt.go); that of a command that could not be started says why
// (hint.go).
//
// The package starts no process and listens to nothing: RUN is the Executor's.
package build
