package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"naru/configs"
)

func configCommand(env *Env) *cobra.Command {
	var asJSON bool
	validate := &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Say all that is wrong in naru.yaml and the apps beside it",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			file := "/etc/naru/naru.yaml"
			if len(args) > 0 {
				file = args[0]
			}
			return validateConfig(env, file, asJSON)
		},
	}
	validate.Flags().BoolVar(&asJSON, "json", false, "print the problems as JSON")
	schema := &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(env.Stdout, "%s\n", configs.Schema())
			return err
		},
	}
	return group("config", "Check the configuration", validate, schema)
}

func validateConfig(env *Env, file string, asJSON bool) error {
	conf, err := configs.Load(file)
	var problems configs.Problems
	if err != nil && !errors.As(err, &problems) {
		return err
	}
	switch {
	case asJSON:
		if problems == nil {
			problems = configs.Problems{}
		}
		err = printJSON(env, problems)
	case len(problems) > 0:
		// Each line begins with file:line, as editors and terminals link it.
		_, err = fmt.Fprintln(env.Stderr, problems)
	default:
		_, err = fmt.Fprintf(env.Stdout, "%s is valid: %s\n", file, count(len(conf.Apps), "app"))
	}
	if err == nil && len(problems) > 0 {
		err = &ExitError{Code: exitUsage}
	}
	return err
}

// count is "1 app", "2 apps".
func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func initCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "init [DIRECTORY]",
		Short: "Write a commented naru.yaml and a sample app",
		Long: "Write a commented naru.yaml and a sample app into DIRECTORY (/etc/naru). A file that is\n" +
			"there is left as it is. The app is written as apps.d/web.yaml.sample: rename it to use it.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir := "/etc/naru"
			if len(args) > 0 {
				dir = args[0]
			}
			return writeSamples(env, dir)
		},
	}
}

// writeSamples copies the embedded samples; apps get a suffix that the agent
// does not read, so that nothing is deployed from a sample's repository.
func writeSamples(env *Env, dir string) error {
	return fs.WalkDir(configs.Samples(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(configs.Samples(), name)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, name)
		if filepath.Dir(name) != "." {
			to += ".sample"
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			_, err = fmt.Fprintln(env.Stdout, to, "is there already, left as it is")
			return err
		}
		if err != nil {
			return err
		}
		_, err = f.Write(text)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		_, err = fmt.Fprintln(env.Stdout, "wrote", to)
		return err
	})
}

func versionCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(env.Stdout, "naru", versionText())
			return err
		},
	}
}
