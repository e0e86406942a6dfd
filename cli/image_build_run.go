package cli

import (
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"naru/sandbox"
	"naru/sandbox/build"
)

// buildRunFlags are the flags of build that are about its RUN steps.
type buildRunFlags struct {
	secrets, ssh, allow, dns, ulimits []string
	shmSize, cgroupParent, disk       string
}

func (f *buildRunFlags) register(flags *pflag.FlagSet, o *build.Options) {
	flags.StringArrayVar(&f.secrets, "secret", nil, "secret of RUN --mount=type=secret: id=NAME,src=FILE or id=NAME,env=VARIABLE")
	flags.StringArrayVar(&f.ssh, "ssh", nil, "agent of RUN --mount=type=ssh: default, or ID=SOCKET or ID=KEY[,KEY]")
	flags.StringArrayVar(&f.allow, "allow", nil, "what RUN may ask for: network.host")
	flags.StringArrayVar(&o.AddHosts, "add-host", nil, "name for /etc/hosts of RUN steps, HOST:IP")
	flags.StringArrayVar(&f.dns, "dns", nil, "name server of RUN steps")
	flags.StringArrayVar(&o.DNSSearch, "dns-search", nil, "domain that RUN steps look names up in")
	flags.StringArrayVar(&o.DNSOptions, "dns-option", nil, "resolv.conf option of RUN steps")
	flags.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm of RUN steps, such as 256m")
	flags.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit of RUN steps, NAME=SOFT[:HARD]")
	flags.StringVar(&f.cgroupParent, "cgroup-parent", "", "not possible: steps have cgroups of their own")
	flags.StringVar(&f.disk, "disk", "", "bytes that the build may write, such as 10g")
	flags.Int64Var(&o.Inodes, "inodes", 0, "files that the build may make")
	flags.DurationVar(&o.StepTimeout, "step-timeout", 0, "longest time of one RUN step")
}

func (f *buildRunFlags) complete(o *build.Options) (err error) {
	if f.cgroupParent != "" {
		return usage("--cgroup-parent %s is not possible: each step has a cgroup of its own below naru's, by which it is limited and ended", f.cgroupParent)
	}
	for _, what := range f.allow {
		if what != "network.host" {
			return usage("--allow %s: only network.host can be allowed", what)
		}
		o.AllowHostNetwork = true
	}
	if o.ShmSize, err = parseSize(f.shmSize); err != nil {
		return fmt.Errorf("--shm-size: %w", err)
	}
	if o.Disk, err = parseSize(f.disk); err != nil {
		return fmt.Errorf("--disk: %w", err)
	}
	for _, s := range f.dns {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return usage("--dns %s is no address", s)
		}
		o.DNS = append(o.DNS, a)
	}
	for _, s := range f.ulimits {
		l, err := sandbox.ParseUlimit(s)
		if err != nil {
			return err
		}
		o.Ulimits = append(o.Ulimits, l)
	}
	if o.Secrets, err = readSecrets(f.secrets); err != nil {
		return err
	}
	o.SSH, err = parseAgents(f.ssh)
	return err
}

// readSecrets reads Docker's id=NAME[,type=file|env][,src=FILE|env=VARIABLE]. With an
// id alone, a variable of that name is taken, or else a file.
func readSecrets(list []string) (map[string][]byte, error) {
	secrets := map[string][]byte{}
	for _, s := range list {
		o := map[string]string{}
		for part := range strings.SplitSeq(s, ",") {
			key, value, ok := strings.Cut(part, "=")
			switch key = strings.ToLower(key); {
			case !ok || value == "":
				return nil, usage("--secret %s: %q is no KEY=VALUE", s, part)
			case key == "source" || key == "src":
				o["src"] = value
			case key == "id" || key == "env" || key == "type" && (value == "file" || value == "env"):
				o[key] = value
			default:
				return nil, usage("--secret %s: %q is not known; there are id, src, env and type=file or env", s, part)
			}
		}
		id := o["id"]
		if id == "" {
			return nil, usage("--secret %s: id is missing", s)
		}
		if _, twice := secrets[id]; twice {
			return nil, usage("--secret: two with the id %s", id)
		}
		if o["type"] == "env" && o["env"] == "" {
			o["env"], o["src"] = o["src"], ""
		}
		value, err := readSecret(id, o["env"], o["src"], o["type"])
		if err != nil {
			return nil, fmt.Errorf("--secret id=%s: %w", id, err)
		}
		secrets[id] = value
	}
	return secrets, nil
}

func readSecret(id, env, file, kind string) ([]byte, error) {
	if env != "" && file != "" {
		return nil, usage("src and env exclude each other")
	}
	if env == "" && file == "" && kind != "file" {
		if _, ok := os.LookupEnv(id); ok || kind == "env" {
			env = id
		}
	}
	if env != "" {
		value, ok := os.LookupEnv(env)
		if !ok {
			return nil, fmt.Errorf("the variable %s is not set", env)
		}
		return []byte(value), nil
	}
	if file == "" {
		file = id
	}
	return os.ReadFile(file)
}

// parseAgents reads Docker's default or ID[=SOCKET|KEY[,KEY...]].
func parseAgents(list []string) (map[string][]string, error) {
	agents := map[string][]string{}
	for _, s := range list {
		id, paths, given := strings.Cut(s, "=")
		if id == "" || given && paths == "" {
			return nil, usage("--ssh %q: want default, or ID=SOCKET or ID=KEY", s)
		}
		if _, twice := agents[id]; twice {
			return nil, usage("--ssh: two with the id %s", id)
		}
		agents[id] = nil
		if given {
			agents[id] = strings.Split(paths, ",")
		}
	}
	return agents, nil
}
