package build

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// exposed reads one word of EXPOSE, [[ip:]hostport:]port[-port][/proto], as a
// list of "port/proto". As in BuildKit, the host's part is checked and dropped.
func exposed(word string) ([]string, error) {
	host, port := "", word
	if i := strings.LastIndexByte(word, ':'); i >= 0 {
		host, port = word[:i], word[i+1:]
	}
	port, proto, given := strings.Cut(port, "/")
	if !given {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	switch proto {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid port %q: protocol must be tcp, udp or sctp", word)
	}
	first, last, err := portRange(port)
	if err != nil {
		return nil, fmt.Errorf("invalid port %q: %w", word, err)
	}
	if err := checkHost(host, last-first); err != nil {
		return nil, fmt.Errorf("invalid port %q: %w", word, err)
	}
	var list []string
	for p := first; p <= last; p++ {
		list = append(list, strconv.Itoa(p)+"/"+proto)
	}
	return list, nil
}

// checkHost checks the part of a port that means nothing in an image.
func checkHost(host string, count int) error {
	if host == "" {
		return nil
	}
	ip, port := "", host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip, port = host[:i], host[i+1:]
	}
	if ip != "" {
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return err
		}
	}
	if port == "" {
		return nil
	}
	first, last, err := portRange(port)
	if err == nil && count != last-first && count != 0 {
		err = errors.New("ranges differ in length")
	}
	return err
}

func portRange(s string) (first, last int, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if first, err = portNumber(a); err != nil || !isRange {
		return first, first, err
	}
	if last, err = portNumber(b); err == nil && last < first {
		err = fmt.Errorf("%d is below %d", last, first)
	}
	return first, last, err
}

func portNumber(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is no port (0 to 65535)", s)
	}
	return int(n), nil
}
