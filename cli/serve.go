package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"naru/agent"
	"naru/agent/api"
	"naru/agent/store"
	"naru/configs"
	"naru/pipeline"
	"naru/pipeline/image"
	"naru/pipeline/nginx"
	"naru/pipeline/source"
	"naru/pipeline/target/local"
	"naru/sandbox"
)

func serveCommand(env *Env) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the agent: receives triggers, deploys, keeps what is live running",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return serve(c.Context(), env, config)
		},
	}
	c.Flags().StringVar(&config, "config", "/etc/naru/naru.yaml", "the agent's configuration")
	return c
}

// leastFree is the free space in bytes below which the agent does not start:
// a full disk would fail half-way what it must finish.
const leastFree = 64 << 20

// socketName is the agent's unix socket in the run directory: who can open it,
// root, needs no token.
const socketName = "naru.sock"

// databaseName is the agent's SQLite file in the data directory.
const databaseName = "naru.db"

// serve builds every part of the agent, in the order in which things must
// exist, and runs until ctx ends or a part fails. What can be refused is
// refused before anything on the machine is touched.
func serve(ctx context.Context, env *Env, config string) (err error) {
	conf, err := configs.Load(config)
	log := newLogger(env)
	defer func() { err = errors.Join(err, ignoreSync(log.Sync())) }()
	if _, err := bearable(conf, err, log); err != nil {
		return &ExitError{Code: exitUsage, Err: err}
	}
	if err := agree(env, conf); err != nil {
		return err
	}
	if err := prepare(conf.Root); err != nil {
		return err
	}
	unlock, err := agent.Lock(conf.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	router, err := nginx.Open(routerOptions(conf, log.Named("nginx")))
	if err != nil {
		return err
	}
	public, err := new(net.ListenConfig).Listen(ctx, "tcp", conf.Listen)
	if err != nil {
		return fmt.Errorf("listen for the API on %s: %w", conf.Listen, cause(err))
	}
	defer public.Close() // Serve has closed it, except after an error below
	log.Info("naru starts", zap.String("version", versionText()), zap.String("config", config), zap.String("root", conf.Root),
		zap.Stringer("listen", public.Addr()), zap.String("nginx", conf.Nginx.Mode))
	if err := router.Check(ctx); err != nil {
		return err
	}
	engine, err := openEngine(&Env{Root: conf.Root, Run: conf.Run})
	if err != nil {
		return err
	}
	if err := engine.Recover(ctx); err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	// Before nginx, whose last routes may name addresses that nobody has now.
	if err := engine.Networks().Ensure(ctx); err != nil {
		return err
	}
	if err := router.Start(ctx); err != nil {
		return err
	}
	private, err := listenPrivate(ctx, filepath.Join(conf.Run, socketName))
	if err != nil {
		return err
	}
	defer private.Close() // as above
	return runAgent(ctx, parts{conf: conf, file: config, log: log, router: router, engine: engine, public: public, private: private})
}

// cause is the system's own word in an error of the network, which else repeats
// the address.
func cause(err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number
	}
	return err
}

// parts is what serve has opened.
type parts struct {
	conf            configs.Config
	file            string
	log             *zap.Logger
	router          *nginx.Router
	engine          *sandbox.Engine
	public, private net.Listener
}

func runAgent(ctx context.Context, p parts) (err error) {
	book, err := store.Open(filepath.Join(p.conf.Root, databaseName))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, book.Close()) }()
	code, err := source.Open(filepath.Join(p.conf.Root, "source"))
	if err != nil {
		return err
	}
	builder := image.New(p.engine, image.DefaultLimits(), source.Fetcher{})
	builder.Secret = func(name string) (string, error) { return configs.ReadBuildSecret(p.conf.Root, name) }
	a, err := agent.New(agent.Options{
		Config: p.conf, Store: book, Log: p.log.Named("agent"), Prune: builder.Prune,
		Engine: &pipeline.Engine{
			Source:  code,
			Builder: builder,
			Target:  local.New(p.engine),
			Router:  p.router,
			Scratch: filepath.Join(p.conf.Root, "scratch"),
			Point:   failpoint(os.Getenv("NARU_FAILPOINT"), os.Getpid()),
		},
	})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.router.Run(ctx) })
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error { return reloads(ctx, a, p.file, p.log) })
	g.Go(func() error {
		return api.Serve(ctx, p.public, api.New(api.Options{Agent: a, Store: book, Log: p.log.Named("api"), PublicURL: p.conf.PublicURL, Version: versionText()}))
	})
	g.Go(func() error {
		return api.Serve(ctx, p.private, api.New(api.Options{Agent: a, Store: book, Log: p.log.Named("api"), PublicURL: p.conf.PublicURL, Version: versionText(), Trusted: true}))
	})
	return g.Wait()
}

// bearable lets the agent start although single app files are wrong: the other
// apps must come back after a reboot. The problems are logged, and the files
// returned.
func bearable(conf configs.Config, err error, log *zap.Logger) (broken []string, _ error) {
	var problems configs.Problems
	if err == nil || conf.Root == "" || !errors.As(err, &problems) {
		return nil, err
	}
	for _, p := range problems {
		log.Error("app file is wrong, the app is left as it is", zap.String("problem", p.String()))
		broken = append(broken, p.File)
	}
	return broken, nil
}

func newLogger(env *Env) *zap.Logger {
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	encoder := zapcore.NewJSONEncoder(cfg)
	if f, ok := env.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		encoder = zapcore.NewConsoleEncoder(cfg)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.AddSync(env.Stderr), zap.InfoLevel))
}

// ignoreSync drops the error of fsync on a terminal or pipe, which cannot be synced.
func ignoreSync(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return nil
	}
	return err
}

func routerOptions(conf configs.Config, log *zap.Logger) nginx.Options {
	return nginx.Options{
		Mode:          conf.Nginx.Mode,
		Dir:           filepath.Join(conf.Root, "nginx"),
		Run:           filepath.Join(conf.Run, "nginx"),
		Listen:        []string{net.JoinHostPort(conf.Nginx.Bind, strconv.Itoa(conf.Nginx.HTTP))},
		SystemInclude: conf.Nginx.Include,
		Log:           log.Sugar().Infow,
	}
}

// agree refuses --root and --run that the configuration contradicts, whichever
// was meant.
func agree(env *Env, conf configs.Config) error {
	for _, d := range []struct{ name, said, usual, configured string }{
		{"root", env.Root, defaultRoot, conf.Root}, {"run", env.Run, defaultRun, conf.Run},
	} {
		if said, err := filepath.Abs(d.said); err != nil || d.said != d.usual && said != d.configured {
			return usage("--%s (NARU_%s) is %s, but %s in %s is %s", d.name, strings.ToUpper(d.name), d.said, d.name, conf.File, d.configured)
		}
	}
	return nil
}

// prepare makes the data directory and refuses a machine on which nothing would
// come to an end.
func prepare(root string) error {
	if err := needRoot(); err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o711); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", root, err)
	}
	if free := st.Bavail * uint64(st.Bsize); free < leastFree || st.Files > 0 && st.Ffree < 1024 {
		return fmt.Errorf("the disk of %s is full: %d MiB and %d inodes are free, at least %d MiB and 1024 inodes are needed",
			root, free>>20, st.Ffree, leastFree>>20)
	}
	return nil
}

// listenPrivate listens on the unix socket, for root only. The caller holds the
// agent's lock, so a socket that is there was left by a killed agent.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the command line: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// reloads reads the configuration again on each SIGHUP.
func reloads(ctx context.Context, a *agent.Agent, file string, log *zap.Logger) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		}
		conf, err := configs.Load(file)
		broken, err := bearable(conf, err, log)
		if err != nil {
			log.Error("config is wrong, the former one stays", zap.Error(err))
			continue
		}
		if err := a.Reload(conf, broken); err != nil {
			log.Error("reload config", zap.Error(err))
		}
	}
}

// failpoint makes the agent kill itself, as SIGKILL from outside would, when a
// deployment reaches the named point (pipeline.Engine.Point). It serves tests
// of recovery; with an empty name it is nil.
func failpoint(name string, pid int) func(string) {
	if name == "" {
		return nil
	}
	return func(at string) {
		if at == name {
			_ = syscall.Kill(pid, syscall.SIGKILL) // there is no after
			select {}
		}
	}
}
