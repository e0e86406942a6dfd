package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// BenchmarkThroughput sends TCP from a container to the host, by the bridge and by
// a plain pair of interfaces, in turns, and reports the medians and their ratio:
//
//	go test -run '^$' -bench Throughput -benchtime 30x ./sandbox/network
func BenchmarkThroughput(b *testing.B) {
	m := openRoot(b, b.TempDir())
	b.Cleanup(func() { must(b, m.Teardown(context.Background())) })
	plain, own := newNamespace(b), newNamespace(b)
	at := attach(b, m, "", "c1", own)
	must(b, plainPair(plain))
	var rates [2][]float64
	for b.Loop() {
		for i, end := range []struct {
			fd   int
			host netip.Addr
		}{{plain.fd, netip.MustParseAddr("198.18.0.1")}, {own.fd, at.Gateway}} {
			rates[i] = append(rates[i], transfer(b, end.fd, end.host))
		}
	}
	median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
	p, o := median(rates[0]), median(rates[1])
	b.ReportMetric(p, "MB/s-plain")
	b.ReportMetric(o, "MB/s-bridge")
	b.ReportMetric(o/p, "bridge/plain")
}

func plainPair(n *namespace) error {
	h := &netlink.Handle{}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "plain0"
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(n.fd)
	if err := h.LinkAdd(v); err != nil {
		return err
	}
	up := func(h *netlink.Handle, name, cidr string) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if err := h.AddrAdd(l, a); err != nil {
			return err
		}
		return h.LinkSetUp(l)
	}
	if err := up(h, "plain0", "198.18.0.1/30"); err != nil {
		return err
	}
	return inNetns(n.fd, func(h *netlink.Handle) error { return up(h, "eth0", "198.18.0.2/30") })
}

// transfer returns megabytes per second of 512 MiB.
func transfer(b *testing.B, from int, to netip.Addr) float64 {
	b.Helper()
	l, err := net.Listen("tcp4", netip.AddrPortFrom(to, 0).String())
	must(b, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			err = errors.Join(err, c.Close())
		}
		done <- err
	}()
	start := time.Now()
	must(b, inNetns(from, func(*netlink.Handle) error {
		c, err := net.Dial("tcp4", l.Addr().String())
		if err != nil {
			return err
		}
		buf := make([]byte, 256<<10)
		for range 2048 {
			if _, err := c.Write(buf); err != nil {
				return err
			}
		}
		return c.Close()
	}))
	must(b, <-done)
	return 512 * 1.048576 / time.Since(start).Seconds()
}
