package build

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"
)

// source is a tree that COPY and ADD read.
type source struct {
	root *root
	// context marks the build context: its owners mean nothing, it may change
	// under our hands, and it holds files, directories and links only.
	context bool
	ignore  *ignore       // nil: none
	sums    *sums         // nil: nothing is remembered
	clock   time.Duration // see clockOf
	dated   bool          // the times of its files are content
	key     string        // stands for the content, if it is known without it
}

// entry is one file of a source that is to be copied.
type entry struct {
	path string // in the source, without links
	rel  string // below the argument that led to it; "" is that itself
	stat unix.Stat_t
	link string // of a symbolic link
	sum  sum    // of a regular file
	caps []byte
	// onWay marks a directory that was not asked for itself, only something
	// below it (--parents, exceptions of --exclude).
	onWay bool
}

// pick is what one argument, or one match of its wildcards, stands for: the
// entry itself and all that is below it, directories before their content.
type pick struct {
	src     *source
	name    string // as it was written, last element
	entries []entry
	unpack  bool // if it is an archive
}

func (p *pick) isDir() bool { return isDir(&p.entries[0].stat) }

// selection says what of a source is wanted.
type selection struct {
	exclude sieve // --exclude, matched against entry.rel
	parents bool  // --parents
}

// pick finds what arg stands for. Wildcards may match nothing.
func (s *source) pick(ctx context.Context, arg string, sel selection) ([]pick, error) {
	walks := walk{ctx: ctx, source: s, exclude: sel.exclude}
	if sel.parents {
		var err error
		if arg, walks.include, err = splitParents(arg); err != nil {
			return nil, err
		}
	}
	paths, err := s.expand(arg)
	if err != nil {
		return nil, err
	}
	var picks []pick
	for _, p := range paths {
		w := walks
		if err := w.from(p); err != nil {
			return nil, err
		}
		if need := w.include.fixed; need != "" && len(paths) == 1 && !hasWildcard(arg) && w.include.literal && len(w.entries) < 2 {
			return nil, s.missing(path.Join(arg, need), path.Join(w.entries[0].path, need), fs.ErrNotExist)
		}
		if err := s.sumFiles(ctx, w.entries); err != nil {
			return nil, err
		}
		picks = append(picks, pick{src: s, name: path.Base(p), entries: w.entries})
	}
	return picks, nil
}

// expand returns the paths that the wildcards of arg stand for. The directory
// that they are in must be there, as in BuildKit.
func (s *source) expand(arg string) ([]string, error) {
	fixed, pattern := splitWildcards(path.Join("/", arg))
	if pattern == "" {
		return []string{fixed}, nil
	}
	base, err := s.root.resolve(fixed)
	if err != nil {
		return nil, err
	}
	_, err = s.root.lstat(base)
	if err == nil && base != "" {
		var seen bool
		if seen, err = s.visible(base); err == nil && !seen {
			err = fs.ErrNotExist
		}
	}
	if err != nil {
		return nil, s.missing(fixed, base, err)
	}
	return s.match(base, strings.Split(pattern, "/"))
}

// splitWildcards cuts an absolute path before its first element with a
// wildcard. A backslash takes the meaning of the next character away.
func splitWildcards(p string) (fixed, pattern string) {
	elems := strings.Split(strings.TrimPrefix(p, "/"), "/")
	for i, e := range elems {
		if hasWildcard(e) {
			return strings.Join(elems[:i], "/"), strings.Join(elems[i:], "/")
		}
	}
	return strings.Join(elems, "/"), ""
}

func hasWildcard(elem string) bool {
	for i := 0; i < len(elem); i++ {
		switch elem[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return true
		}
	}
	return false
}

// match returns the paths below dir that the pattern matches. Links on the way
// are not followed, and what .dockerignore hides is not seen.
func (s *source) match(dir string, pattern []string) ([]string, error) {
	f, err := s.root.open(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing can be lost
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || !isDir(&st) {
		return nil, err
	}
	names, err := namesIn(f)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, name := range names {
		ok, err := path.Match(pattern[0], name)
		if err != nil {
			return nil, fmt.Errorf("pattern %q: %w", pattern[0], err)
		}
		if !ok {
			continue
		}
		p := path.Join(dir, name)
		if len(pattern) > 1 {
			below, err := s.match(p, pattern[1:])
			if err != nil {
				return nil, err
			}
			found = append(found, below...)
			continue
		}
		seen, err := s.visible(p)
		if err != nil {
			return nil, err
		}
		if seen {
			found = append(found, p)
		}
	}
	return found, nil
}

// visible tells whether p, which exists, is in the context as far as
// .dockerignore goes: it, or something below it.
func (s *source) visible(p string) (bool, error) {
	w := walk{ctx: context.Background(), source: s}
	out, info, err := w.ignored().outDeep(p)
	if err != nil || !out {
		return !out, err
	}
	st, err := s.root.lstat(p)
	if err != nil || !isDir(&st) || w.ignored().final() {
		return false, err
	}
	if err := w.dir(entry{path: p, stat: st}, matched{ignored: info}); err != nil {
		return false, err
	}
	return len(w.entries) > 0, nil
}

// walk collects entries.
type walk struct {
	ctx     context.Context
	source  *source
	exclude sieve   // of --exclude, matched against entry.rel
	include include // of --parents, likewise
	entries []entry
}

// matched is what the patterns said about a directory.
type matched struct{ ignored, excluded, included patternmatcher.MatchInfo }

func (w *walk) ignored() sieve {
	if w.source.ignore == nil {
		return sieve{}
	}
	return sieve{w.source.ignore.matcher}
}

// from collects what is at p, whose links are followed inside the source.
func (w *walk) from(arg string) error {
	p, err := w.source.root.resolve(arg)
	if err != nil {
		return err
	}
	st, err := w.source.root.lstat(p)
	if err != nil {
		return w.source.missing(arg, p, err)
	}
	out, info, err := w.ignored().outDeep(p)
	if err != nil {
		return err
	}
	e, wanted := entry{path: p, stat: st}, true
	if !isDir(&st) {
		err = w.source.root.in("read", p, func(dir int, _ string) error {
			e, wanted, err = w.entry(dir, p, "", &st)
			return err
		})
		if err != nil {
			return err
		}
	}
	if !wanted {
		return fmt.Errorf("/%s is a socket", p)
	}
	if !isDir(&st) {
		if out {
			return w.source.missing(arg, p, fs.ErrNotExist)
		}
		w.entries = append(w.entries, e)
		return nil
	}
	w.entries = append(w.entries, e)
	if err := w.dir(e, matched{ignored: info}); err != nil {
		return err
	}
	if out && len(w.entries) == 1 {
		return w.source.missing(arg, p, fs.ErrNotExist)
	}
	return nil
}

// dir collects what is in the directory e.
func (w *walk) dir(e entry, m matched) error {
	if err := context.Cause(w.ctx); err != nil {
		return err
	}
	f, err := w.source.root.open(e.path)
	if err != nil {
		return err
	}
	defer f.Close() // read only: nothing can be lost
	names, err := namesIn(f)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := w.child(f, e, name, m); err != nil {
			return err
		}
	}
	return nil
}

// child collects one file of a directory, or leaves it out. A directory that is
// left out still comes along if something below it is not.
func (w *walk) child(dir fder, parent entry, name string, m matched) error {
	p, rel := below(parent.path, name), below(parent.rel, name)
	hidden, ign, err := w.ignored().out(p, m.ignored)
	if err != nil {
		return err
	}
	excluded, exc, err := w.exclude.out(rel, m.excluded)
	if err != nil {
		return err
	}
	included, inc, err := w.include.takes(rel, m.included)
	if err != nil {
		return err
	}
	if hidden && w.ignored().final() || excluded && w.exclude.final() || !included && !w.include.leadsTo(rel) {
		return nil
	}
	onWay := excluded || !included
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return pathError("stat", p, err)
	}
	if (hidden || onWay) && !isDir(&st) {
		return nil
	}
	e, wanted, err := w.entry(int(dir.Fd()), p, rel, &st)
	if err != nil || !wanted {
		return err
	}
	e.onWay = onWay
	w.entries = append(w.entries, e)
	if !isDir(&st) {
		return nil
	}
	n := len(w.entries)
	if err := w.dir(e, matched{ign, exc, inc}); err != nil {
		return err
	}
	if (hidden || onWay) && len(w.entries) == n {
		w.entries = w.entries[:n-1]
	}
	return nil
}

// entry describes one file. Sockets are not wanted anywhere.
func (w *walk) entry(dir int, p, rel string, st *unix.Stat_t) (e entry, wanted bool, err error) {
	e = entry{path: p, rel: rel, stat: *st}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return e, false, nil
	case unix.S_IFLNK:
		if e.link, err = readlinkAt(dir, path.Base(p)); err != nil {
			return e, false, pathError("readlink", p, err)
		}
	case unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK:
		if w.source.context {
			return e, false, fmt.Errorf("/%s in the context is a fifo or device; files, directories and links can be copied", p)
		}
	}
	return e, true, nil
}

// fder is an open directory.
type fder interface{ Fd() uintptr }

// below joins without cleaning, which both parts are already.
func below(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// feed adds everything about the picks that shows in a layer, and nothing else:
// no times, no inode numbers, no owners of a context.
func (k *keyHash) feed(picks []pick) {
	for i := range picks {
		p := &picks[i]
		k.field("pick", p.name, strconv.FormatBool(p.unpack))
		if p.src.key != "" {
			k.field("known", p.src.key)
			continue
		}
		first := map[[2]uint64]int{}
		for j := range p.entries {
			e := &p.entries[j]
			k.field("entry", e.rel, e.link, string(e.caps), decimal(e.stat.Mode))
			if p.src.dated {
				k.field("time", strconv.FormatInt(e.stat.Mtim.Sec, 10))
			}
			if e.onWay {
				k.field("on the way")
			}
			if !p.src.context {
				k.field("owner", decimal(e.stat.Uid), decimal(e.stat.Gid))
			}
			switch e.stat.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				k.field("content", string(e.sum[:]))
				if e.stat.Nlink > 1 {
					id := [2]uint64{uint64(e.stat.Dev), e.stat.Ino}
					if at, ok := first[id]; ok {
						k.field("link", strconv.Itoa(at))
					} else {
						first[id] = j
					}
				}
			case unix.S_IFCHR, unix.S_IFBLK:
				k.field("device", decimal(e.stat.Rdev))
			}
		}
	}
}

func decimal[T uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }
