package build

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// fieldFate says of every field of every command what becomes of it: "done", or
// a Dockerfile line that uses it and has to be refused.
var fieldFate = map[string]string{
	"AddCommand.SourcesAndDest.DestPath": "done", "AddCommand.SourcesAndDest.SourcePaths": "done",
	"AddCommand.SourcesAndDest.SourceContents.Path": "done", "AddCommand.SourcesAndDest.SourceContents.Data": "done",
	"AddCommand.SourcesAndDest.SourceContents.Expand": "done", // by ExpandRaw
	"AddCommand.Chown": "done", "AddCommand.Chmod": "done", "AddCommand.Link": "done", "AddCommand.ExcludePatterns": "done",
	"AddCommand.KeepGitDir": "ADD --keep-git-dir=false a /b", "AddCommand.Checksum": "ADD --checksum=sha256:00 a /b", "AddCommand.Unpack": "done",

	"ArgCommand.Args.Key": "done", "ArgCommand.Args.Value": "done", "ArgCommand.Args.DocComment": "done", // a comment

	"CmdCommand.ShellDependantCmdLine.CmdLine": "done", "CmdCommand.ShellDependantCmdLine.PrependShell": "done",
	"CmdCommand.ShellDependantCmdLine.Files.Name": "never", "CmdCommand.ShellDependantCmdLine.Files.Data": "never",
	"CmdCommand.ShellDependantCmdLine.Files.Chomp": "never", // the parser knows no heredocs here

	"CopyCommand.SourcesAndDest.DestPath": "done", "CopyCommand.SourcesAndDest.SourcePaths": "done",
	"CopyCommand.SourcesAndDest.SourceContents.Path": "done", "CopyCommand.SourcesAndDest.SourceContents.Data": "done",
	"CopyCommand.SourcesAndDest.SourceContents.Expand": "done",
	"CopyCommand.From": "done", "CopyCommand.Chown": "done", "CopyCommand.Chmod": "done", "CopyCommand.Link": "done",
	"CopyCommand.ExcludePatterns": "done", "CopyCommand.Parents": "COPY --parents a /b",

	"EntrypointCommand.ShellDependantCmdLine.CmdLine": "done", "EntrypointCommand.ShellDependantCmdLine.PrependShell": "done",
	"EntrypointCommand.ShellDependantCmdLine.Files.Name": "never", "EntrypointCommand.ShellDependantCmdLine.Files.Data": "never",
	"EntrypointCommand.ShellDependantCmdLine.Files.Chomp": "never",

	"EnvCommand.Env.Key": "done", "EnvCommand.Env.Value": "done", "EnvCommand.Env.NoDelim": "done", // the old form; means the same
	"ExposeCommand.Ports": "done",

	"HealthCheckCommand.Health.Test": "done", "HealthCheckCommand.Health.Interval": "done", "HealthCheckCommand.Health.Timeout": "done",
	"HealthCheckCommand.Health.StartPeriod": "done", "HealthCheckCommand.Health.StartInterval": "done", "HealthCheckCommand.Health.Retries": "done",

	"LabelCommand.Labels.Key": "done", "LabelCommand.Labels.Value": "done", "LabelCommand.Labels.NoDelim": "done",
	"LabelCommand.noExpand": "done", // by Expand

	"MaintainerCommand.Maintainer": "done", "OnbuildCommand.Expression": "done",

	"RunCommand.ShellDependantCmdLine.CmdLine": "done", "RunCommand.ShellDependantCmdLine.PrependShell": "done",
	"RunCommand.ShellDependantCmdLine.Files.Name": "done", "RunCommand.ShellDependantCmdLine.Files.Data": "done",
	"RunCommand.ShellDependantCmdLine.Files.Chomp": "done",
	"RunCommand.FlagsUsed":                         "RUN --mount=type=cache,target=/c x",
	"RunCommand.withExternalData.m":                "RUN --security=insecure x", // what stands behind the flags

	"ShellCommand.Shell": "done", "StopSignalCommand.Signal": "done", "UserCommand.User": "done", "VolumeCommand.Volumes": "done", "WorkdirCommand.Path": "done",

	"Stage.Name": "done", "Stage.BaseName": "done", "Stage.Platform": "done", "Stage.Commands": "done",
	"Stage.OrigCmd": "done", "Stage.DocComment": "done", "Stage.SourceCode": "done", "Stage.Comments": "done", // for linters
	"Stage.Location.Start.Line": "done", "Stage.Location.Start.Character": "done", "Stage.Location.End.Line": "done", "Stage.Location.End.Character": "done",
}

// samples has one line for every instruction that the parser knows.
var samples = map[string]string{
	command.Add: "ADD a /b", command.Arg: "ARG a", command.Cmd: "CMD a", command.Copy: "COPY a /b", command.Entrypoint: "ENTRYPOINT a",
	command.Env: "ENV a=b", command.Expose: "EXPOSE 1", command.From: "FROM a", command.Healthcheck: "HEALTHCHECK NONE",
	command.Label: "LABEL a=b", command.Maintainer: "MAINTAINER a", command.Onbuild: "ONBUILD RUN a", command.Run: "RUN a",
	command.Shell: `SHELL ["a"]`, command.StopSignal: "STOPSIGNAL 9", command.User: "USER a", command.Volume: "VOLUME /a", command.Workdir: "WORKDIR /a",
}

func parseLine(t *testing.T, line string) any {
	t.Helper()
	ast, err := parser.Parse(strings.NewReader(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	cmd, err := instructions.ParseInstruction(ast.AST.Children[0])
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return cmd
}

// fieldsOf lists the fields of a command down to plain values.
func fieldsOf(prefix string, typ reflect.Type) []string {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	if typ.Kind() != reflect.Struct {
		return []string{prefix}
	}
	var list []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if f.Name == "withNameAndCode" { // text and place of the instruction
			continue
		}
		list = append(list, fieldsOf(prefix+"."+f.Name, f.Type)...)
	}
	return list
}

// TestEveryField fails when a new version of the parser knows something that
// this package has not decided on.
func TestEveryField(t *testing.T) {
	seen := map[string]bool{}
	for name := range command.Commands {
		line, ok := samples[name]
		if !ok {
			t.Errorf("the parser knows a new instruction %s", strings.ToUpper(name))
			continue
		}
		typ := reflect.TypeOf(parseLine(t, line)).Elem()
		for _, field := range fieldsOf(typ.Name(), typ) {
			seen[field] = true
			switch fate := fieldFate[field]; fate {
			case "done", "never":
			case "":
				t.Errorf("%s is neither done nor refused", field)
			default:
				if err := refuse(parseLine(t, fate).(instructions.Command)); err == nil {
					t.Errorf("%s: %q is not refused", field, fate)
				}
			}
		}
	}
	for field := range fieldFate {
		if !seen[field] {
			t.Errorf("%s is gone", field)
		}
	}
}

// TestRefused: what is refused is named, with its line, before anything runs.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	for _, line := range []string{
		"ADD --keep-git-dir=true a /b", "ADD --checksum=sha256:aa http://x/y /b", "ADD http://x/y /b", "ADD git@github.com:a/b.git /b",
		"ADD https://github.com/a/b.git /b", "COPY --parents a /b", "COPY http://x/y /b", "RUN --mount=type=bind,target=/x x",
		"RUN --mount=type=secret,id=x x", "RUN --security=insecure x", "RUN --network=host x", "RUN --device=x x",
	} {
		dir := w.context(map[string]string{"Dockerfile": "FROM base\nRUN touch /ran\n" + line + "\n"})
		_, log, err := w.build(Options{Context: dir})
		flag := strings.Fields(line)[1]
		flag, _, _ = strings.Cut(flag, "=")
		if !strings.HasPrefix(flag, "--") {
			flag = strings.Fields(line)[0]
		}
		if err == nil || !strings.Contains(err.Error(), "Dockerfile:3: ") || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", line, err)
		}
		if w.runs > 0 {
			t.Fatalf("%s: something ran\n%s", line, log)
		}
	}
	dir := w.context(map[string]string{"Dockerfile": "FROM base\nARG U\nADD $U /b\n"})
	if _, _, err := w.build(Options{Context: dir, Args: map[string]string{"U": "https://x/y"}}); err == nil || !strings.Contains(err.Error(), "Dockerfile:3: ADD of a remote source") {
		t.Error(err)
	}
}

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{
		"80": "[80/tcp]", "80/UDP": "[80/udp]", "7-9/sctp": "[7/sctp 8/sctp 9/sctp]", "127.0.0.1:80:90": "[90/tcp]", "[::1]:80:90": "[90/tcp]",
		"80:90": "[90/tcp]", "80-81:90-91": "[90/tcp 91/tcp]", "80-81:90": "[90/tcp]",
		"": "", "x": "", "65536": "", "9-7": "", "80/icmp": "", "1.2.3:80:90": "", "80-82:90-91": "", "-1": "", "80/tcp/x": "",
	} {
		got, err := exposed(in)
		if want == "" && err == nil || want != "" && (err != nil || fmt.Sprint(got) != want) {
			t.Errorf("%q: %v, %v; want %q", in, got, err, want)
		}
	}
}
