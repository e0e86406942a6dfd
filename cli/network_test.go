package cli

import (
	"fmt"
	"testing"

	"naru/sandbox"
)

func TestPublishFlag(t *testing.T) {
	for s, want := range map[string]string{
		"80":                    "[80/tcp -> 0.0.0.0:0]",
		"8080:80":               "[80/tcp -> 0.0.0.0:8080]",
		"8080:80/udp":           "[80/udp -> 0.0.0.0:8080]",
		"127.0.0.1:8080:80":     "[80/tcp -> 127.0.0.1:8080]",
		"127.0.0.1::80":         "[80/tcp -> 127.0.0.1:0]",
		"[2001:db8::1]:8080:80": "[80/tcp -> [2001:db8::1]:8080]",
		"8000-8001:80-81/TCP":   "[80/tcp -> 0.0.0.0:8000 81/tcp -> 0.0.0.0:8001]",
		"70-71":                 "[70/tcp -> 0.0.0.0:0 71/tcp -> 0.0.0.0:0]",
	} {
		got, err := parsePublish(s)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", ":", "x:80", "80:x", "0:80", "80:0", "70000:80", "1-2:80", "80-79", "a.b:80:80", "1.2.3:80:80"} {
		if got, err := parsePublish(s); err == nil {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}

func TestNetworkFlags(t *testing.T) {
	f := networkFlags{networks: []string{"name=app,alias=web,ip6=fd00::7", "side"}, aliases: []string{"www"}, ip: "10.1.0.7"}
	c := sandbox.ContainerConfig{}
	if err := f.complete(&c); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%s %+v", c.Network, c.Net.Endpoints)
	want := "app [{Network:app Aliases:[web www] Address:10.1.0.7 Address6:fd00::7 MAC:} {Network:side Aliases:[] Address:invalid IP Address6:invalid IP MAC:}]"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	c = sandbox.ContainerConfig{}
	if err := (&networkFlags{networks: []string{"host"}}).complete(&c); err != nil || c.Network != "host" || c.Net.Endpoints != nil {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range []networkFlags{
		{networks: []string{"a,b=c"}}, {networks: []string{"alias=x"}}, {ip: "fd00::1"}, {ip6: "10.0.0.1"}, {dns: []string{"x"}},
	} {
		if err := bad.complete(&sandbox.ContainerConfig{}); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}
