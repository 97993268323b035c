"""A stack as a template of CloudFormation, or of AWS SAM, which differs in its functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from fargate_runner.infrastructure._stack import ABOUT_SUBMIT, ABOUT_SUPERVISOR, Stack, filled, structures

__all__ = ["cloudformation", "yaml"]


def cloudformation(stack: Stack, *, sam: bool) -> str:
    """Return the template."""
    access = stack.access(
        "${AWS::Region}",
        "${AWS::AccountId}",
        partition="${AWS::Partition}",
        roles=["${ExecutionRole.Arn}", "${TaskRole.Arn}"],
    )
    parts = structures(
        stack,
        access,
        cluster="${Cluster.Arn}",
        queue="${EventsQueue.Arn}",
        dead="${DeadLetters.Arn}",
        rule="${EventsRule.Arn}",
        ends_queue="${EndsQueue.Arn}",
        ends_rule="${EndsRule.Arn}",
    )
    sections = (
        (_SAM_HEAD, _PARAMETERS, _SAM_PARAMETERS, _CONDITIONS, _RESOURCES, _SAM_FUNCTIONS, _OUTPUTS)
        if sam
        else (_HEAD, _PARAMETERS, _CODE_PARAMETERS, _CONDITIONS, _RESOURCES, _FUNCTIONS, _OUTPUTS)
    )
    text = "\n".join(section.removeprefix("\n").rstrip("\n") for section in sections)
    return filled(text, stack.words(), parts, yaml)


# ---- YAML ----------------------------------------------------------------------------------------------------------


_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./:${}*-]*(?<!:)\Z")
_NOT_TEXT: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
_ATTRIBUTE: Final = re.compile(r"\$\{(?P<path>\w+\.\w+)\}\Z")
_WHOLE: Final = re.compile(r"\$\{(?P<name>[\w:]+)\}\Z")


def yaml(value: Any) -> list[str]:
    """Return a structure of mappings, lists and texts as lines of YAML; ``${…}`` is what CloudFormation puts in."""
    if isinstance(value, Mapping):
        return [line for name, part in value.items() for line in _under(f"{_plain(name)}:", part)]
    return [
        f"{'- ' if not number else '  '}{line}"
        for part in value
        for number, line in enumerate(yaml(part) if isinstance(part, Mapping) else [_scalar(part)])
    ]


def _under(name: str, part: Any) -> list[str]:
    if isinstance(part, (Mapping, list, tuple)):
        return [name, *(f"  {line}" for line in yaml(part))]
    return [f"{name} {_scalar(part)}"]


def _scalar(value: str) -> str:
    if attribute := _ATTRIBUTE.match(value):
        return f"!GetAtt {attribute['path']}"
    if whole := _WHOLE.match(value):
        return f"!Ref {whole['name']}"
    return f"!Sub {_plain(value)}" if "${" in value else _plain(value)


def _plain(text: str) -> str:
    if _PLAIN.match(text) and text.lower() not in _NOT_TEXT:
        return text
    return "'" + text.replace("'", "''") + "'"


# ---- the template --------------------------------------------------------------------------------------------------


_HEAD: Final = """
# What fargate_runner needs to run jobs, written by
#
#   fargate-runner init --format cloudformation --name @name@@options@
#
# Deploy it:
#
#   aws cloudformation deploy --template-file template.yaml --stack-name @name@ --capabilities CAPABILITY_IAM \\
#     --parameter-overrides VpcId=vpc-... SubnetIds=subnet-...,subnet-... PublicIp=false
#
# Once your code is in S3, deploy it again with CodeBucket=... CodeKey=... Handler=app.handler.
AWSTemplateFormatVersion: '2010-09-09'
Description: Runs one-off jobs as Fargate tasks (fargate_runner, @name@)
"""

_SAM_HEAD: Final = """
# What fargate_runner needs to run jobs, written by
#
#   fargate-runner init --format sam --name @name@@options@
#
# Put your handler and its requirements.txt into src/, and deploy it:
#
#   sam build
#   sam deploy --stack-name @name@ --resolve-s3 --capabilities CAPABILITY_IAM \\
#     --parameter-overrides VpcId=vpc-... SubnetIds=subnet-...,subnet-... PublicIp=false
AWSTemplateFormatVersion: '2010-09-09'
Transform: AWS::Serverless-2016-10-31
Description: Runs one-off jobs as Fargate tasks (fargate_runner, @name@)
"""

_PARAMETERS: Final = """

Parameters:
  VpcId:
    Type: AWS::EC2::VPC::Id
    Description: The network that tasks are plugged into.
  SubnetIds:
    Type: List<AWS::EC2::Subnet::Id>
    Description: Its subnets, one in each zone that may be used.
  PublicIp:
    Type: String
    AllowedValues: ['true', 'false']
    Default: 'false'
    Description: Whether tasks get a public address. Without one, the subnets need a NAT gateway or endpoints.
"""

_CODE_PARAMETERS: Final = """
  CodeBucket:
    Type: String
    Default: no-bucket
    Description: The bucket with your code; needed with a handler.
  CodeKey:
    Type: String
    Default: no-code.zip
    Description: The zip archive in it, with your handlers and fargate_runner.
  Handler:
    Type: String
    Default: ''
    Description: Your handler that runs jobs, such as app.handler. Empty for no function.
  SupervisorHandler:
    Type: String
    Default: ''
    Description: Your handler that is told what becomes of tasks, such as app.on_event. Empty for no function.
"""

_SAM_PARAMETERS: Final = """
  Handler:
    Type: String
    Default: app.handler
    Description: Your handler in src/ that runs jobs. Empty for no function.
  SupervisorHandler:
    Type: String
    Default: ''
    Description: Your handler that is told what becomes of tasks, such as app.on_event. Empty for no function.
"""

_CONDITIONS: Final = """

Conditions:
  HasHandler: !Not [!Equals [!Ref Handler, '']]
  HasSupervisor: !Not [!Equals [!Ref SupervisorHandler, '']]
  HasFunction: !Or [!Condition HasHandler, !Condition HasSupervisor]
"""

_RESOURCES: Final = """

Resources:
  # ---- where jobs run ----------------------------------------------------------------------------------------------
  Cluster:
    Type: AWS::ECS::Cluster
    Properties:
      ClusterName: @name@
      CapacityProviders: [FARGATE, FARGATE_SPOT]
      DefaultCapacityProviderStrategy:
        - CapacityProvider: FARGATE
          Weight: 1

  # Tasks reach out, and nobody reaches them.
  SecurityGroup:
    Type: AWS::EC2::SecurityGroup
    Properties:
      GroupDescription: Tasks of fargate_runner (@name@)
      VpcId: !Ref VpcId
      SecurityGroupEgress:
        - CidrIp: 0.0.0.0/0
          IpProtocol: '-1'
          Description: Whatever jobs need

  # Kept when the stack is deleted, as is the journal.
  LogGroup:
    Type: AWS::Logs::LogGroup
    DeletionPolicy: RetainExceptOnCreate
    UpdateReplacePolicy: Retain
    Properties:
      LogGroupName: @log_group@
      RetentionInDays: @retention_days@

  # ---- who may do what ---------------------------------------------------------------------------------------------
  # Pulls the image, writes the lines. Add the secrets that jobs name by reference.
  ExecutionRole:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        @tasks_trust@
      Policies:
        - PolicyName: execution
          PolicyDocument:
            @execution_policy@

  # What jobs themselves may do: nothing, until you add it.
  TaskRole:
    Type: AWS::IAM::Role
    Properties:
      AssumeRolePolicyDocument:
        @tasks_trust@

  # Whoever runs jobs needs this one.
  CallerPolicy:
    Type: AWS::IAM::ManagedPolicy
    Properties:
      Description: To run jobs with fargate_runner (@name@)
      PolicyDocument:
        @caller_policy@

  # ---- what becomes of tasks ---------------------------------------------------------------------------------------
  # For one process that waits, EcsBackend(events='@queue@'): as its make_events() makes it.
  EventsQueue:
    Type: AWS::SQS::Queue
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      QueueName: @queue@
      MessageRetentionPeriod: @retention@
      VisibilityTimeout: @hidden@
      ReceiveMessageWaitTimeSeconds: @long_poll@
      SqsManagedSseEnabled: true
      RedrivePolicy:
        deadLetterTargetArn: !GetAtt DeadLetters.Arn
        maxReceiveCount: 5

  # What nobody could read, or could not be delivered.
  DeadLetters:
    Type: AWS::SQS::Queue
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      QueueName: @queue@-dead
      MessageRetentionPeriod: 1209600
      SqsManagedSseEnabled: true

  EventsQueuePolicy:
    Type: AWS::SQS::QueuePolicy
    Properties:
      Queues: [!Ref EventsQueue]
      PolicyDocument:
        @queue_policy@

  DeadLettersPolicy:
    Type: AWS::SQS::QueuePolicy
    Properties:
      Queues: [!Ref DeadLetters]
      PolicyDocument:
        @dead_policy@

  EventsRule:
    Type: AWS::Events::Rule
    Properties:
      Name: @queue@
      Description: @about_rule@
      State: ENABLED
      EventPattern:
        @pattern@
      Targets:
        - Id: queue
          Arn: !GetAtt EventsQueue.Arn
          DeadLetterConfig:
            Arn: !GetAtt DeadLetters.Arn

  # For your supervisor: ends of tasks, delivered again until it is done with them, ten times at twelve minutes.
  EndsQueue:
    Type: AWS::SQS::Queue
    Condition: HasSupervisor
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      QueueName: @ends@
      MessageRetentionPeriod: 345600
      VisibilityTimeout: 720
      SqsManagedSseEnabled: true
      RedrivePolicy:
        deadLetterTargetArn: !GetAtt DeadLetters.Arn
        maxReceiveCount: 10

  EndsQueuePolicy:
    Type: AWS::SQS::QueuePolicy
    Condition: HasSupervisor
    Properties:
      Queues: [!Ref EndsQueue]
      PolicyDocument:
        @ends_policy@

  EndsRule:
    Type: AWS::Events::Rule
    Condition: HasSupervisor
    Properties:
      Name: @ends@
      Description: Ends of tasks of fargate_runner, for the queue of the same name
      State: ENABLED
      EventPattern:
        @ends_pattern@
      Targets:
        - Id: queue
          Arn: !GetAtt EndsQueue.Arn

  # ---- what survives a crash ---------------------------------------------------------------------------------------
  Journal:
    Type: AWS::DynamoDB::Table
    DeletionPolicy: RetainExceptOnCreate
    UpdateReplacePolicy: Retain
    Properties:
      TableName: @table@
      @table_design@
      TimeToLiveSpecification:
        AttributeName: @expires@
        Enabled: true

  # ---- your functions ----------------------------------------------------------------------------------------------
  FunctionRole:
    Type: AWS::IAM::Role
    Condition: HasFunction
    Properties:
      AssumeRolePolicyDocument:
        @functions_trust@
      ManagedPolicyArns: [!Ref CallerPolicy]
      Policies:
        - PolicyName: function
          PolicyDocument:
            @functions_policy@

  SubmitLines:
    Type: AWS::Logs::LogGroup
    Condition: HasHandler
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      LogGroupName: /aws/lambda/@name@-submit
      RetentionInDays: @retention_days@

  SupervisorLines:
    Type: AWS::Logs::LogGroup
    Condition: HasSupervisor
    DeletionPolicy: Delete
    UpdateReplacePolicy: Delete
    Properties:
      LogGroupName: /aws/lambda/@name@-supervisor
      RetentionInDays: @retention_days@

  SupervisorTrigger:
    Type: AWS::Lambda::EventSourceMapping
    Condition: HasSupervisor
    Properties:
      EventSourceArn: !GetAtt EndsQueue.Arn
      FunctionName: !GetAtt Supervisor.Arn
      BatchSize: 10
      FunctionResponseTypes: [ReportBatchItemFailures]
"""


def _function(kind: str, logical: str, handler: str, condition: str, about: str, seconds: int, code: str) -> str:
    """Return one function; both formats have the same of it but for its type and its code."""
    failed = "DeadLetterQueue:\n        Type: SQS\n        TargetArn" if kind.startswith("AWS::S") else ""
    failed = failed or "DeadLetterConfig:\n        TargetArn"
    return f"""
  # {about}
  {logical}:
    Type: {kind}
    Condition: {condition}
    DependsOn: {logical}Lines
    Properties:
      FunctionName: @name@-{logical.lower()}
      {code}
      Handler: !Ref {handler}
      Runtime: python3.13
      MemorySize: 512
      Timeout: {seconds}
      Role: !GetAtt FunctionRole.Arn
      {failed}: !GetAtt DeadLetters.Arn
      Environment:
        Variables:
          # EcsBackend() finds these; the table is for DynamoDBJournal(os.environ['JOURNAL_TABLE']).
          FARGATE_RUNNER_CLUSTER: !Ref Cluster
          FARGATE_RUNNER_SUBNETS: !Join [',', !Ref SubnetIds]
          FARGATE_RUNNER_SECURITY_GROUPS: !GetAtt SecurityGroup.GroupId
          FARGATE_RUNNER_PUBLIC_IP: !Ref PublicIp
          FARGATE_RUNNER_EXECUTION_ROLE: !GetAtt ExecutionRole.Arn
          FARGATE_RUNNER_TASK_ROLE: !GetAtt TaskRole.Arn
          FARGATE_RUNNER_LOG_GROUP: !Ref LogGroup
          JOURNAL_TABLE: !Ref Journal
"""


def _both(kind: str, code: str) -> str:
    return _function(
        kind, "Submit", "Handler", "HasHandler", f"{ABOUT_SUBMIT[0]}\n  # {ABOUT_SUBMIT[1]}", 60, code
    ) + _function(kind, "Supervisor", "SupervisorHandler", "HasSupervisor", ABOUT_SUPERVISOR, 120, code)


_IN_S3: Final = "Code:\n        S3Bucket: !Ref CodeBucket\n        S3Key: !Ref CodeKey"
_FUNCTIONS: Final = "\n" + _both("AWS::Lambda::Function", _IN_S3)
_SAM_FUNCTIONS: Final = "\n" + _both("AWS::Serverless::Function", "CodeUri: src/")

_OUTPUTS: Final = """

# What to say to EcsBackend elsewhere, by these variables or as its options.
Outputs:
  Cluster:
    Description: FARGATE_RUNNER_CLUSTER
    Value: !Ref Cluster
  Subnets:
    Description: FARGATE_RUNNER_SUBNETS
    Value: !Join [',', !Ref SubnetIds]
  SecurityGroup:
    Description: FARGATE_RUNNER_SECURITY_GROUPS
    Value: !GetAtt SecurityGroup.GroupId
  ExecutionRole:
    Description: FARGATE_RUNNER_EXECUTION_ROLE
    Value: !GetAtt ExecutionRole.Arn
  TaskRole:
    Description: FARGATE_RUNNER_TASK_ROLE
    Value: !GetAtt TaskRole.Arn
  LogGroup:
    Description: FARGATE_RUNNER_LOG_GROUP
    Value: !Ref LogGroup
  EventsQueue:
    Description: For EcsBackend(events=...), in one process
    Value: !Ref EventsQueue
  Journal:
    Description: For DynamoDBJournal(...)
    Value: !Ref Journal
  CallerPolicy:
    Description: For the roles of whoever runs jobs
    Value: !Ref CallerPolicy
"""
