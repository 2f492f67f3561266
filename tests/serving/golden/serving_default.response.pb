
#
labelBlateralBlateral
&
decisionBlateralBlateral
/
probabilities*Zœ•>Ó15?é±>‹s'?
viewserving_default