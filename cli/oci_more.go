package cli

import (
	"github.com/spf13/cobra"
)

func (o *ociEnv) psCommand() *cobra.Command {
	return &cobra.Command{Use: "ps", RunE: func(*cobra.Command, []string) error { return nil }}
}
func (o *ociEnv) updateCommand() *cobra.Command {
	return &cobra.Command{Use: "update", RunE: func(*cobra.Command, []string) error { return nil }}
}
func (o *ociEnv) eventsCommand() *cobra.Command {
	return &cobra.Command{Use: "events", RunE: func(*cobra.Command, []string) error { return nil }}
}
func (o *ociEnv) featuresCommand() *cobra.Command {
	return &cobra.Command{Use: "features", RunE: func(*cobra.Command, []string) error { return nil }}
}
func (o *ociEnv) specCommand() *cobra.Command {
	return &cobra.Command{Use: "spec", RunE: func(*cobra.Command, []string) error { return nil }}
}
