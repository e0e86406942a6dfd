package image

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// The grammar of names is that of github.com/distribution/reference. What every
// command needs is read by hand, as compiling its expressions takes longer.

// hostPattern is that of a registry.
var hostPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`)
})

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

// validHost spares Docker's own registry the expression.
func validHost(host string) bool { return host == hub || hostPattern().MatchString(host) }

// validPath: parts between slashes, each of lower case letters and digits with ".",
// "_", "__" or any number of "-" between them.
func validPath(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || !lowerOrDigit(part[0]) || !lowerOrDigit(part[len(part)-1]) {
			return false
		}
		for i := 0; i < len(part); {
			start := i
			for i < len(part) && !lowerOrDigit(part[i]) {
				i++
			}
			if separator := part[start:i]; separator != "" && separator != "." && separator != "_" && separator != "__" && strings.Trim(separator, "-") != "" {
				return false
			}
			for i < len(part) && lowerOrDigit(part[i]) {
				i++
			}
		}
	}
	return true
}

// validTag: a letter, digit or "_", then up to 127 of those, "." and "-".
func validTag(tag string) bool {
	if tag == "" || len(tag) > 128 || tag[0] == '.' || tag[0] == '-' {
		return false
	}
	return strings.Trim(tag, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") == "" // Trim takes all, or stops at a stranger
}

// isID says that s may be an image's id or the beginning of one.
func isID(s string) bool {
	s = strings.TrimPrefix(s, "sha256:")
	return len(s) >= 2 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

const hub = "docker.io"

// reference is a name taken apart.
type reference struct {
	host, path string // "docker.io", "library/debian"
	tag        string
	digest     digest.Digest // or "": with one, the tag says nothing
}

// parseName takes a name apart as Docker does: without a registry it is on
// docker.io, there without a slash below library/, without a tag "latest".
func parseName(name string) (reference, error) {
	r := reference{host: hub}
	rest, at, pinned := strings.Cut(name, "@")
	if pinned {
		r.digest = digest.Digest(at)
		if err := checkDigest(r.digest); err != nil {
			return r, fmt.Errorf("image name %q: %w", name, err)
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.tag = rest[:i], rest[i+1:]
		if !validTag(r.tag) {
			return r, fmt.Errorf("image name %q: bad tag", name)
		}
	}
	if r.tag == "" && !pinned {
		r.tag = "latest"
	}
	r.path = rest
	if host, path, ok := strings.Cut(rest, "/"); ok && isHost(host) {
		r.host, r.path = host, path
	}
	if r.host == "index.docker.io" {
		r.host = hub
	}
	if r.host == hub && !strings.Contains(r.path, "/") {
		r.path = "library/" + r.path
	}
	if !validHost(r.host) || !validPath(r.path) || len(r.path) > 255 {
		return r, fmt.Errorf("image name %q: want [registry/]path[:tag] in lower case", name)
	}
	return r, nil
}

func isHost(s string) bool {
	return strings.ContainsAny(s, ".:") || s == "localhost" || strings.ToLower(s) != s
}

// short is the form people type and Docker shows; it is what the store keeps.
func (r reference) short() string {
	path := r.path
	if r.host == hub {
		path = strings.TrimPrefix(path, "library/")
	} else {
		path = r.host + "/" + path
	}
	if r.digest != "" {
		return path + "@" + r.digest.String()
	}
	return path + ":" + r.tag
}

// full is the form with every part, which containerd and Docker write into archives.
func (r reference) full() string {
	if r.digest != "" {
		return r.host + "/" + r.path + "@" + r.digest.String()
	}
	return r.host + "/" + r.path + ":" + r.tag
}

// tagOrDigest is what a registry is asked for.
func (r reference) tagOrDigest() string {
	if r.digest != "" {
		return r.digest.String()
	}
	return r.tag
}

func (r reference) withDigest(d digest.Digest) reference {
	r.digest = d
	return r
}

// FullName writes a name with every part, as Docker prints what it pulled:
// "docker.io/library/debian:12" for "debian:12".
func FullName(name string) (string, error) {
	r, err := parseName(name)
	return r.full(), err
}
