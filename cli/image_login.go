package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"naru/sandbox/image"
)

func loginCommand(env *Env) *cobra.Command {
	login, fromStdin := image.Login{}, false
	c := &cobra.Command{
		Use:   "login [SERVER]",
		Short: "Log in to a registry (default: docker.io)",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				login.Host = args[0]
			}
			if err := askCredentials(env, &login, fromStdin); err != nil {
				return err
			}
			hosts, err := readRegistries(env)
			if err != nil {
				return err
			}
			// Docker's own file store warns of passwords in plain text.
			if _, err := image.LogIn(c.Context(), login, hosts); err != nil {
				return err
			}
			fmt.Fprintln(env.Stdout, "Login Succeeded")
			return nil
		},
	}
	c.Flags().StringVarP(&login.User, "username", "u", "", "user name")
	c.Flags().StringVarP(&login.Password, "password", "p", "", "password; other users of the machine can see it: better --password-stdin")
	c.Flags().BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	c.Flags().BoolVar(&login.Insecure, "insecure", false, "allow plain HTTP and unknown certificates")
	return c
}

// askCredentials completes what the flags did not say.
func askCredentials(env *Env, login *image.Login, fromStdin bool) error {
	switch {
	case fromStdin && login.Password != "":
		return usage("--password and --password-stdin exclude each other")
	case fromStdin && login.User == "":
		return usage("--password-stdin needs --username")
	case fromStdin:
		const longest = 64 << 10
		data, err := io.ReadAll(io.LimitReader(env.Stdin, longest))
		login.Password = strings.TrimRight(string(data), "\r\n")
		return err
	case login.Password != "":
		fmt.Fprintln(env.Stderr, "WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	}
	if login.User != "" && login.Password != "" {
		return nil
	}
	if !isTerminal(env.Stdin) {
		return usage("no terminal to ask on: use --username and --password-stdin")
	}
	return promptCredentials(env, login)
}

func promptCredentials(env *Env, login *image.Login) error {
	if login.User == "" {
		fmt.Fprint(env.Stderr, "Username: ")
		line, err := bufio.NewReader(env.Stdin).ReadString('\n')
		if err != nil {
			return err
		}
		login.User = strings.TrimSpace(line)
	}
	if login.Password == "" {
		fmt.Fprint(env.Stderr, "Password: ")
		password, err := term.ReadPassword(int(env.Stdin.Fd()))
		fmt.Fprintln(env.Stderr)
		if err != nil {
			return err
		}
		login.Password = string(password)
	}
	return nil
}

func logoutCommand(env *Env) *cobra.Command {
	return &cobra.Command{
		Use:   "logout [SERVER]",
		Short: "Forget the credentials of a registry (default: docker.io)",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			host := "docker.io"
			if len(args) == 1 {
				host = args[0]
			}
			known, err := image.LogOut(host)
			if err != nil {
				return err
			}
			if !known {
				fmt.Fprintln(env.Stdout, "Not logged in to", host)
				return nil
			}
			fmt.Fprintln(env.Stdout, "Removing login credentials for", host)
			return nil
		},
	}
}

// quietForEach is forEach without the echo.
func quietForEach(args []string, do func(arg string) error) error {
	var errs []error
	for _, arg := range args {
		errs = append(errs, do(arg))
	}
	return errors.Join(errs...)
}
